"""What is in a store as numbers, comparisons, charts and reports. Without torch."""
