"""Settings as a file that one team hands to another."""
