"""The answer first: the sentences that each page of the dashboard opens with, whose links select what they speak of."""
