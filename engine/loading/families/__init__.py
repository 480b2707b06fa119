"""What is special about families of models and their repositories."""
