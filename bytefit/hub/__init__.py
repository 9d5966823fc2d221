"""The Hugging Face hub, through ``huggingface_hub`` (an extra): published data comes from there, artifacts go both ways."""

from bytefit.hub.pretrained import from_pretrained, push_to_hub

__all__ = ["from_pretrained", "push_to_hub"]
