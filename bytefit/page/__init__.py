"""A page that holds an artifact and runs it in a browser; the JavaScript in ``js/`` mirrors the loader and the model."""
