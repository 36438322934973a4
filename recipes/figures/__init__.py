"""What is said of a recipe?"""
