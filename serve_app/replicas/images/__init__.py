"""Where images come from: base64, addresses, files."""
