"""What the demo model learns from: images, skills, conversations, words."""
