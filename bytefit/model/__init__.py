"""The language model: one short forward pass with named seams, a plan, and a role for every parameter."""
