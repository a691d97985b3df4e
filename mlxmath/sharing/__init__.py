"""What goes to the Hugging Face Hub: which files, with which card."""
