"""A whole run: the steps in order, each resumable, and the folder that holds what they leave."""
