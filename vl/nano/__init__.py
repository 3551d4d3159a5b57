"""The embedded model's own: the pictures it learns from and is tested on, its tokenizer, tasks and recipes."""
