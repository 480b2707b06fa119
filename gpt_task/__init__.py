"""A facade, so that scripts written for gpt-task run unchanged."""
