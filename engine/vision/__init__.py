"""Images: their preparation, their features, their places in the text."""
