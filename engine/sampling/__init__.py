"""From logits to tokens: settings, processors, penalties, beams, grammars."""
