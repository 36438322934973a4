"""What facts about engines are made of: checks of an artifact's headers.

Each says what is wrong with an artifact for an engine, and what to change in the recipe; None if nothing is.
"""
