"""How the processes of a stage are started, on one machine or many, and how they end."""
