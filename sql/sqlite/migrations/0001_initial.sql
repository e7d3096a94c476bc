-- The tables of fsmworkflow. Times are seconds since the epoch; `due` is from when somebody has to drive a run.

CREATE TABLE fsm_runs (
    id           INTEGER PRIMARY KEY,
    workflow     TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    definition   INTEGER NOT NULL,           -- the version of the workflow that the run follows
    structure    TEXT    NOT NULL,           -- a hash of its states and transitions
    status       TEXT    NOT NULL,
    state        TEXT    NOT NULL,           -- the active leaf states, as text
    active       TEXT    NOT NULL,           -- {"state": {"visit": n, "attempt": n, ...}} in document order
    data         TEXT    NOT NULL,           -- a field over 4 KB stands as {"$field": hash}
    version      INTEGER NOT NULL,           -- the number of moves so far
    due          REAL,
    owner        TEXT,
    epoch        INTEGER NOT NULL DEFAULT 0, -- raised by every claim
    claim        TEXT,                       -- the call that claimed it: how one whose answer was lost is found again
    posted       INTEGER NOT NULL DEFAULT 0, -- the number of events ever posted to it
    error        TEXT,
    actions      TEXT,                       -- what is still to be done after the last commit
    undo         TEXT,                       -- {"left": [finished visits that can be compensated], "ends": ..., "lost": [...]}
    input        TEXT    NOT NULL,           -- a hash of the data it was started with
    parent       INTEGER,
    parent_state TEXT,
    parent_visit INTEGER,
    ordinal      INTEGER,                    -- which of its parent's children, from 0
    joining      TEXT,                       -- {"state visit": children that have not ended}
    deadline     REAL,
    deaths       INTEGER NOT NULL DEFAULT 0, -- how often it was in flight when its process died, in this visit
    flight       INTEGER,                    -- the epoch in which a suspect said that it is in flight
    created      REAL    NOT NULL,
    updated      REAL    NOT NULL,
    UNIQUE (workflow, key)
);
CREATE INDEX fsm_runs_due ON fsm_runs (due) WHERE due IS NOT NULL;
CREATE INDEX fsm_runs_status ON fsm_runs (workflow, status, id);
CREATE INDEX fsm_runs_parent ON fsm_runs (parent, parent_visit) WHERE parent IS NOT NULL;

CREATE TABLE fsm_events (
    id        INTEGER PRIMARY KEY,
    run       INTEGER NOT NULL,
    event_id  TEXT    NOT NULL,
    name      TEXT    NOT NULL,
    payload   TEXT,
    due       REAL    NOT NULL,
    state     TEXT,
    visit     INTEGER,                       -- where set, good for that visit only
    status    TEXT    NOT NULL DEFAULT 'waiting',
    version   INTEGER,                       -- the move that took it
    remaining INTEGER,                       -- children that must end before it is due
    created   REAL    NOT NULL,
    UNIQUE (run, event_id)
);
CREATE INDEX fsm_events_waiting ON fsm_events (run, due, id) WHERE status = 'waiting';
CREATE INDEX fsm_events_new ON fsm_events (created) WHERE status = 'waiting';

CREATE TABLE fsm_moves (
    run     INTEGER NOT NULL,
    version INTEGER NOT NULL,
    at      REAL    NOT NULL,
    began   REAL,
    event   TEXT    NOT NULL,
    trigger TEXT,
    source  TEXT    NOT NULL,
    dest    TEXT    NOT NULL,
    status  TEXT    NOT NULL,
    attempt INTEGER NOT NULL,
    owner   TEXT,
    epoch   INTEGER NOT NULL,
    changes TEXT,                            -- the fields that it changed, no copy of the whole
    removed TEXT,
    asked   TEXT,                            -- conditions, with the values that they saw
    error   TEXT,
    detail  TEXT,
    PRIMARY KEY (run, version)
) WITHOUT ROWID;

CREATE TABLE fsm_calls (
    run    INTEGER NOT NULL,
    state  TEXT    NOT NULL,
    visit  INTEGER NOT NULL,
    name   TEXT    NOT NULL,
    nth    INTEGER NOT NULL,
    result TEXT    NOT NULL,
    UNIQUE (run, state, visit, name, nth)
);

CREATE TABLE fsm_fields (
    run  INTEGER NOT NULL,
    hash TEXT    NOT NULL,
    text TEXT    NOT NULL,
    UNIQUE (run, hash)
);

CREATE TABLE fsm_owners (
    token    TEXT    PRIMARY KEY,
    machine  TEXT    NOT NULL,
    process  TEXT    NOT NULL,
    lease    REAL    NOT NULL,
    started  REAL    NOT NULL,
    draining INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
