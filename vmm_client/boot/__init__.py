"""Boot protocols: they lay an image out in guest memory and say how the first vCPU enters it."""
