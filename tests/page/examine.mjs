// Runs the page's own modules for the tests: `node examine.mjs MODULES TASK`, the task's argument as JSON on stdin, its answer on stdout.

import { readFileSync } from "node:fs";

const [modules, task] = process.argv.slice(2);
const load = (name) => import(`${modules}/${name}.mjs`);
const { loadArtifact } = await load("artifact");
const { CodeStream } = await load("code_stream");
const { generate } = await load("generate");
const { layout } = await load("layout");
const { readTokenizer } = await load("tokenizer");
const { Reader } = await load("reader");

const bytesOf = (path) => new Uint8Array(readFileSync(path));
const hexOf = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("hex");

const TASKS = {
  /** Streams of codes: every matrix, int32 in hexadecimal; or what is wrong with the stream. */
  streams: async (streams) =>
    streams.map(({ path, shapes, trellis }) => {
      try {
        const stream = new CodeStream(bytesOf(path));
        const matrices = shapes.map(([rows, columns], i) => hexOf(stream.matrix(rows, columns, trellis[i])));
        stream.end();
        return matrices;
      } catch (error) {
        return error.message;
      }
    }),

  /** Artifacts: the layout, and every weight, fp32 in hexadecimal. */
  weights: (paths) =>
    Promise.all(
      paths.map(async (path) => {
        const { config, model } = await loadArtifact(bytesOf(path));
        return layout(config).map((parameter) => ({ ...parameter, values: hexOf(model.weights.get(parameter.name)) }));
      }),
    ),

  /** Artifacts and ids: logits after each id, read one by one; in the middle other ids are read and forgotten again. */
  logits: (artifacts) =>
    Promise.all(
      artifacts.map(async ({ path, ids }) => {
        const { model } = await loadArtifact(bytesOf(path));
        const cache = model.newCache();
        return ids.map((id, position) => {
          if (position === ids.length >> 1) {
            for (const other of [id, id, 5]) model.hidden(cache, other);
            cache.ids.length = position;
          }
          return Array.from(model.logits(cache, id));
        });
      }),
    ),

  /** Tokenizer sections and texts (UTF-8 in hexadecimal): ids, exact ids and what those decode to. */
  tokenize: async ({ paths, texts }) =>
    paths.map((path) => {
      const tokenizer = readTokenizer(bytesOf(path));
      return texts.map((hex) => {
        const bytes = new Uint8Array(Buffer.from(hex, "hex"));
        const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
        const exact = tokenizer.encode(bytes);
        return { plain: tokenizer.encodeText(text), exact, decoded: hexOf(tokenizer.decode(exact)) };
      });
    }),

  /** An artifact and texts that follow one another in the same box: of each text every token's id, bits and likeliest ids. */
  read: async ({ path, texts }) => {
    const reader = new Reader(await loadArtifact(bytesOf(path)));
    return texts.map((text) => {
      for (const _ of reader.read(new TextEncoder().encode(text)));
      return structuredClone(reader.costs);
    });
  },

  /** An artifact, prompts and options: the ids that follow each. */
  generate: async ({ path, prompts, options }) => {
    const artifact = await loadArtifact(bytesOf(path));
    return prompts.map((prompt) => Array.from(generate(artifact, new TextEncoder().encode(prompt), options)));
  },

  /** The first token (BOS, where the text ends at once) under each of many seeds. */
  first_tokens: async ({ path, prompt, options }) => {
    const artifact = await loadArtifact(bytesOf(path));
    const bytes = new TextEncoder().encode(prompt);
    return Array.from({ length: options.seeds }, (_, seed) => Array.from(generate(artifact, bytes, { ...options, seed }))[0] ?? 1);
  },
};

process.stdout.write(JSON.stringify(await TASKS[task](JSON.parse(readFileSync(0, "utf8")))));
