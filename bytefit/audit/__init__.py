"""What a sceptic would ask of a score, asked by a program: probes of predictors, and the checklist for a run."""
