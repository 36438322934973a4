"""What does it look like? Figures and maps of artifacts in one file of HTML, which opens without a network."""
