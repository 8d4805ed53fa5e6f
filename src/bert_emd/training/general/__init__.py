"""General distillation: a pre-trained encoder's student, from plain text."""
