"""What the parts of the graph say to each other, failures included."""
