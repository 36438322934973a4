"""How is the whole model trained? Objectives, losses, teachers, and the loop that follows their gradients."""
