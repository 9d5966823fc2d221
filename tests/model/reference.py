"""The whole network spelled out plainly: float64, no batches, one position and one head at a time, nothing shared with the package.

``logits(config, weights, ids)`` reads a ``ModelConfig`` and the parameters by the names that the model gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bytefit.model.head import LearnedCaps
from bytefit.model.language_model import ModelConfig
from bytefit.model.mlp import SwigluConfig

BOS = 1  # first token of every document
Vector = np.ndarray
Vectors = list[np.ndarray]  # one a position


@dataclass(frozen=True)
class Plain:
    """
    Attributes:
        weights: every parameter in float64.
        eps: inside the root of every norm; PyTorch's default is the machine epsilon of the type that it computes in.
    """

    config: ModelConfig
    weights: Mapping[str, np.ndarray]
    eps: float

    def norm(self, x: Vector) -> Vector:
        return x / math.sqrt(np.mean(x * x) + self.eps)

    def embed(self, ids: Sequence[int]) -> Vectors:
        """Token row, plus what the hashes of the last two and of the last three tokens look up, normed, then smeared."""
        w, bigram, trigram, smear = self.weights, self.config.bigram, self.config.trigram, self.config.smear
        x = [w["embedding.weight"][token] for token in ids]
        if bigram is not None:
            for t in range(len(ids)):
                if t == 0 or (bigram.mask_documents and ids[t] == BOS):
                    row = bigram.buckets - 1
                else:
                    row = ((36313 * ids[t]) ^ (27191 * ids[t - 1])) % (bigram.buckets - 1)
                x[t] = x[t] + w["bigram.scale"] * (w["bigram.projection.weight"] @ w["bigram.table.weight"][row])
        if trigram is not None:
            for t in range(len(ids)):
                if t < 2 or (trigram.mask_documents and BOS in (ids[t], ids[t - 1])):
                    row = trigram.buckets - 1
                else:
                    row = (17911 * ids[t - 2] + 36313 * ids[t - 1] + 27191 * ids[t]) % (trigram.buckets - 1)
                x[t] = x[t] + w["trigram.scale"] * (w["trigram.projection.weight"] @ w["trigram.table.weight"][row])
        x = [self.norm(x_t) for x_t in x]
        if smear is not None:
            g = sigmoid(w["smear.gate"])
            smeared = []
            for t in range(len(ids)):
                before = x[t - 1] if t > 0 else np.zeros_like(x[t])
                keeps_all = smear.mask_documents and ids[t] == BOS
                smeared.append(x[t] if keeps_all else (1 - g) * x[t] + g * before)
            x = smeared
        return x

    def turn(self, head: Vector, position: int) -> Vector:
        """Rotary positions: channel i turns with channel i + dims/2; channels from dims on stay. Tables hold fp32."""
        rotary = self.config.attention.rotary
        dims = rotary.dims or len(head)
        base = rotary.base
        if rotary.reference_length is not None and rotary.length is not None:
            base *= (rotary.length / rotary.reference_length) ** (dims / (dims - 2))
        out = head.copy()
        for i in range(dims // 2):
            frequency = base ** (-2 * i / dims)
            if rotary.table_dtype == "bfloat16":
                angle = bf16(bf16(position) * bf16(frequency))
                cos, sin = bf16(math.cos(angle)), bf16(math.sin(angle))
            else:
                cos, sin = fp32(math.cos(position * frequency)), fp32(math.sin(position * frequency))
            first, second = head[i], head[i + dims // 2]
            out[i] = first * cos + second * sin
            out[i + dims // 2] = -first * sin + second * cos
        return out

    def attention(self, block: int, x: Vectors, ids: Sequence[int], first_values: list[Vectors]) -> Vectors:
        """Of the normed stream. ``first_values`` is filled by the first attention of the network: [kv head][position]."""
        w, config, prefix = self.weights, self.config.attention, f"blocks.{block}.attention"
        heads, kv_heads = config.num_heads, config.num_kv_heads
        width = self.config.dim // heads
        embedding = self.config.value_embedding
        keys: list[Vectors] = [[] for _ in range(kv_heads)]
        values: list[Vectors] = [[] for _ in range(kv_heads)]
        for t in range(len(x)):
            k, v = w[f"{prefix}.key.weight"] @ x[t], w[f"{prefix}.value.weight"] @ x[t]
            if embedding is not None and block in embedding.blocks:
                extra = w["value_embedding.projection.weight"] @ w["value_embedding.table.weight"][ids[t]]
                v = v + w[f"{prefix}.extra_value_scale"] * w["value_embedding.scale"] * extra
            for g in range(kv_heads):
                keys[g].append(self.turn(self.norm(k[g * width : (g + 1) * width]), t))
                values[g].append(v[g * width : (g + 1) * width])
        if not first_values:
            first_values.extend(values)
        if config.value_residual is not None and block != self.config.plan[0].block:
            first, own = w[f"{prefix}.value_residual.mix"]
            values = [[first * first_values[g][t] + own * values[g][t] for t in range(len(x))] for g in range(kv_heads)]
        excludes = config.exclusive is not None and (config.exclusive.blocks is None or block in config.exclusive.blocks)
        gate = config.output_gate
        gated = gate is not None and (gate.blocks is None or block in gate.blocks)
        out = []
        for t in range(len(x)):
            q = w[f"{prefix}.query.weight"] @ x[t]
            ys = []
            for h in range(heads):
                g = h // (heads // kv_heads)  # the key/value head that serves this query head
                q_h = w[f"{prefix}.q_gain"][h] * self.turn(self.norm(q[h * width : (h + 1) * width]), t)
                scores = np.array([q_h @ keys[g][s] / math.sqrt(width) for s in range(t + 1)])
                shares = np.exp(scores - scores.max())
                shares = shares / shares.sum()
                y = sum(shares[s] * values[g][s] for s in range(t + 1))
                if excludes:
                    unit = values[g][t] / math.sqrt(values[g][t] @ values[g][t])
                    y = y - (y @ unit) * unit
                if gated:
                    y = y * 2 * sigmoid(w[f"{prefix}.output_gate.weight"][h] @ x[t][: gate.channels])
                ys.append(y)
            out.append(w[f"{prefix}.out.weight"] @ np.concatenate(ys))
        return out

    def mlp(self, block: int, x_t: Vector) -> Vector:
        w, config, prefix = self.weights, self.config.mlp, f"blocks.{block}.mlp"
        u = w[f"{prefix}.up.weight"] @ x_t
        if isinstance(config, SwigluConfig):
            z = w[f"{prefix}.gate.weight"] @ x_t
            hidden = z * sigmoid(z) * u
        else:
            hidden = np.where(u > 0, u, config.slope * u) ** 2
        return w[f"{prefix}.down.weight"] @ hidden

    def run_block(self, block: int, lanes: list[Vectors], x0: Vectors, ids: Sequence[int], first_values: list[Vectors]) -> list[Vectors]:
        """One residual stream in, one out; or two of each in blocks with parallel lanes."""
        w, prefix, positions = self.weights, f"blocks.{block}", range(len(ids))
        scale = 1 / math.sqrt(block + 1) if self.config.depth_scaled_norm else 1.0
        a, b = w[f"{prefix}.mix_stream"], w[f"{prefix}.mix_embedding"]
        s, m = w[f"{prefix}.attention_scale"], w[f"{prefix}.mlp_scale"]
        two = self.config.lanes is not None and block >= self.config.lanes.start
        if two and len(lanes) == 1:
            lanes = [lanes[0], lanes[0]]
        if not two:
            lanes = [mean(lanes)]
        lanes = [[a * lane[t] + b * x0[t] for t in positions] for lane in lanes]
        attended = self.attention(block, [scale * self.norm(lanes[0][t]) for t in positions], ids, first_values)
        if not two:
            x = [lanes[0][t] + s * attended[t] for t in positions]
            return [[x[t] + m * self.mlp(block, scale * self.norm(x[t])) for t in positions]]
        route = w[f"{prefix}.lanes.weight"]
        thought = [self.mlp(block, scale * self.norm(lanes[1][t])) for t in positions]
        return [[lanes[j][t] + route[0, j] * s * attended[t] + route[1, j] * m * thought[t] for t in positions] for j in (0, 1)]

    def raw_logits(self, ids: Sequence[int]) -> np.ndarray:
        """(positions, vocabulary), before the softcap."""
        w, positions = self.weights, range(len(ids))
        x0 = self.embed(ids)
        lanes, stack, first_values = [x0], [], []
        for step in self.config.plan:
            if step.position is not None:
                lanes = [[lane[t] + w["loop_positions"][step.position] for t in positions] for lane in lanes]
            if step.pop is not None:
                skip = stack.pop()
                lanes = [[lane[t] + w["skip_scales"][step.pop] * skip[t] for t in positions] for lane in lanes]
            lanes = self.run_block(step.block, lanes, x0, ids, first_values)
            if step.push:
                stack.append(mean(lanes))
        matrix = w["embedding.weight"] if self.config.head.tied else w["head.matrix.weight"]
        return np.stack([matrix @ self.norm(x_t) for x_t in mean(lanes)])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(positions, vocabulary)"""
        z, cap = self.raw_logits(ids), self.config.head.softcap
        if cap is None:
            return z
        above, below = self.weights["head.caps"] if isinstance(cap, LearnedCaps) else (cap, cap)
        return np.where(z > 0, above * np.tanh(z / above), below * np.tanh(z / below))


def mean(lanes: list[Vectors]) -> Vectors:
    return [sum(lane[t] for lane in lanes) / len(lanes) for t in range(len(lanes[0]))]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def fp32(x: float) -> float:
    return float(np.float32(x))


def bf16(x: float) -> float:
    """Round to 8 significant bits, ties to even."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256), exponent - 8)
