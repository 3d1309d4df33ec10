"""How a pipeline comes to be, and what is known of it before it is loaded."""
