"""A run as a Parameter Golf record: one script that trains and scores alone, its artifacts, and what a reader needs to check them."""
