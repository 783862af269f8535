"""The methods, a folder each, and what they share. Torch and timm only: nothing here knows of data or the trainer."""
