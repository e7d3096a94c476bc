-- Children: whose turn it is, how deep they are, and which of them is next.

ALTER TABLE fsm_runs ADD COLUMN turn INTEGER;                     -- of a child: 0 waits for its turn, 1 has it, 2 its end was counted
ALTER TABLE fsm_runs ADD COLUMN depth INTEGER NOT NULL DEFAULT 0; -- how many runs are above it
ALTER TABLE fsm_events ADD COLUMN next INTEGER;                   -- of a count: the child whose turn comes when one ends
ALTER TABLE fsm_events ADD COLUMN first INTEGER;                  -- of a count: 1 where the first failure makes it due
DROP INDEX fsm_runs_parent;
CREATE INDEX fsm_runs_child ON fsm_runs (parent, parent_state, parent_visit, ordinal) WHERE parent IS NOT NULL;
CREATE INDEX fsm_runs_turn ON fsm_runs (parent) WHERE turn = 1;
CREATE INDEX fsm_events_joining ON fsm_events (run, state, visit) WHERE status = 'joining';
