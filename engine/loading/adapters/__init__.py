"""LoRA adapters as PEFT saves them: what they ask for, whether they fit, their weights."""
