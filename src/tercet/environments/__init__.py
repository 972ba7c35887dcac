"""What answers the model turn after turn, and rewards what it does: `environment = "..."` of an RL stage.

An environment is a class. `reset(row)` begins an episode and gives the turns that the model reads first; `step(action)`
takes what the model wrote and gives the turns that follow, a reward, whether the episode is over, and a note of any
kind for the log. Both may be `async`. Turns are `Message`s, dicts with `role` and `content`, or a text (a user's turn).

    class Echo:
        def reset(self, row):
            return row.prompt
        def step(self, action):
            return [], float(action.strip() == row.reference), True, {}

One object plays one episode, in a process of its own kind (pool.py): it may keep what it likes. It must do the same
again when it is told the same, as an episode whose process was lost is played again up to where it was.
"""
