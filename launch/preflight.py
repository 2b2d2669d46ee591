"""`python -m launch.preflight`: what a node is held against before ranks start on it. Not written yet: every node passes."""
