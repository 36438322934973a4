"""What does it take to let sequences through a model, counted from shapes?"""
