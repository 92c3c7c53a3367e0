"""The answer first: the one to three sentences that a page opens with, in words and with what each part selects."""
