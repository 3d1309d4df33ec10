"""Two runs side by side: processes that take turns on identical latents, and the ratio that follows."""
