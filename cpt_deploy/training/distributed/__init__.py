"""Training in several processes: who they are, and what they tell each other in a step."""
