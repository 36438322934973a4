"""What do the containers in a Hugging Face directory have in common?"""
