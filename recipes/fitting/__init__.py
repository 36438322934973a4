"""What of a recipe fits where its result is to run?"""
