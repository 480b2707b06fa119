"""What clients ask: random letters, images, and real texts of five kinds."""
