"""Clients that live at random and die at any instant, and what the host keeps of them: nothing."""
