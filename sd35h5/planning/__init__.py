"""What was asked, resolved once: options, prompts, selectors, interventions, plan, budget, cost. Torch-free."""
