"""Episodes of a policy in gymnasium environments: groups of them, who runs them, on which clock, and their journal."""
