"""What the pages share: checkpoints, the address bar, charts, token strips, and text that stays text."""
