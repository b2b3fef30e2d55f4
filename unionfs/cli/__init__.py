"""The command line: one file per verb, each with its parser and its action. The only room that prints, exits and
sees all others."""
