-- The tables of fsmworkflow. Times are seconds since the epoch; `due` is from when somebody has to drive a run.

CREATE TABLE fsm_runs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow     text    NOT NULL,
    key          text    NOT NULL,
    definition   bigint NOT NULL,           -- the version of the workflow that the run follows
    structure    text    NOT NULL,           -- a hash of its states and transitions
    status       text    NOT NULL,
    state        text    NOT NULL,           -- the active leaf states, as text
    active       text    NOT NULL,           -- {"state": [visit, attempt]} in document order
    data         text    NOT NULL,           -- a field over 4 KB stands as {"$field": hash}
    version      bigint NOT NULL,           -- the number of moves so far
    due          double precision,
    owner        text,
    epoch        bigint NOT NULL DEFAULT 0, -- raised by every claim
    posted       bigint NOT NULL DEFAULT 0, -- the number of events ever posted to it
    error        text,
    actions      text,                       -- what is still to be done after the last commit
    undo         text,                       -- finished visits that can be compensated
    input        text    NOT NULL,           -- a hash of the data it was started with
    parent       bigint,
    parent_state text,
    parent_visit bigint,
    ordinal      bigint,                    -- which of its parent's children, from 0
    joining      text,                       -- {"state visit": children that have not ended}
    deadline     double precision,
    deaths       bigint NOT NULL DEFAULT 0, -- how often it was in flight when its process died, in this visit
    flight       bigint,                    -- the epoch in which a suspect said that it is in flight
    created      double precision    NOT NULL,
    updated      double precision    NOT NULL,
    UNIQUE (workflow, key)
);
CREATE INDEX fsm_runs_due ON fsm_runs (due) WHERE due IS NOT NULL;
CREATE INDEX fsm_runs_status ON fsm_runs (workflow, status, id);
CREATE INDEX fsm_runs_parent ON fsm_runs (parent, parent_visit) WHERE parent IS NOT NULL;

CREATE TABLE fsm_events (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run       bigint NOT NULL,
    event_id  text    NOT NULL,
    name      text    NOT NULL,
    payload   text,
    due       double precision    NOT NULL,
    state     text,
    visit     bigint,                       -- where set, good for that visit only
    status    text    NOT NULL DEFAULT 'waiting',
    version   bigint,                       -- the move that took it
    remaining bigint,                       -- children that must end before it is due
    created   double precision    NOT NULL,
    UNIQUE (run, event_id)
);
CREATE INDEX fsm_events_waiting ON fsm_events (run, due, id) WHERE status = 'waiting';

CREATE TABLE fsm_moves (
    run     bigint NOT NULL,
    version bigint NOT NULL,
    at      double precision    NOT NULL,
    began   double precision,
    event   text    NOT NULL,
    trigger text,
    source  text    NOT NULL,
    dest    text    NOT NULL,
    status  text    NOT NULL,
    attempt bigint NOT NULL,
    owner   text,
    epoch   bigint NOT NULL,
    changes text,                            -- the fields that it changed, no copy of the whole
    removed text,
    asked   text,                            -- conditions, with the values that they saw
    error   text,
    detail  text,
    PRIMARY KEY (run, version)
);

CREATE TABLE fsm_calls (
    run    bigint NOT NULL,
    state  text    NOT NULL,
    visit  bigint NOT NULL,
    name   text    NOT NULL,
    nth    bigint NOT NULL,
    result text    NOT NULL,
    UNIQUE (run, state, visit, name, nth)
);

CREATE TABLE fsm_fields (
    run  bigint NOT NULL,
    hash text    NOT NULL,
    text text    NOT NULL,
    UNIQUE (run, hash)
);

CREATE TABLE fsm_owners (
    token    text    PRIMARY KEY,
    machine  text    NOT NULL,
    process  text    NOT NULL,
    lease    double precision    NOT NULL,
    started  double precision    NOT NULL,
    draining bigint NOT NULL DEFAULT 0
);
