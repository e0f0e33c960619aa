"""Episodes of a policy in gymnasium environments: environments, groups, runners, clocks, and the journal."""
