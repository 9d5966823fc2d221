"""The Hugging Face hub, through ``huggingface_hub`` (an extra): published data comes from there, artifacts go both ways."""
