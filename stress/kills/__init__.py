"""A kill matrix: task, agent and uploader are killed at named points and at random moments (``__main__`` says more)."""
