/*
 * The guard protocol as a model for spin. Nodes mount and unmount one volume and
 * are killed, rebooted, paused or cut off from Ceph at any step; an operator
 * fences, and a virtual machine opens the image.
 *
 * What spin checks, in every interleaving:
 *   - never can two write, nor one where a virtual machine was first (oneWriter, met);
 *   - a holder that Ceph has not missed is fenced by nobody but an operator;
 *   - there is no state in which a node that lives cannot get in and out again (it
 *     would stand still before its end: an invalid end state).
 *
 * A pause needs no transition: any process may stand still between two steps. That
 * Ceph misses it meanwhile is a step of Watch. So is a partition, in which calls
 * fail besides: LOST is a call that fails; the swap to "mapped" may arrive later all
 * the same, as package rbd leaves what does not end in time under way.
 *
 * A name in [brackets] is the function of this package that makes the step. The
 * test in test/model holds the names to the code, and sets each CHECK_ to 0 in
 * turn: spin must then find what goes wrong.
 *
 * Left out: formatting, which begins anew under a record of its own (blank.go);
 * removal, which is a write by the control client; a guard deleted by hand, which
 * [Lost] puts back. Under "mapping" nothing is written to the image but, for an old
 * one, its feature exclusive-lock, which comes to the same whoever does it.
 */

#define CLIENTS (NODES * PER)              /* clients of Ceph, which are addresses, are numbers */
#define HOST(c) ((c) / PER)                /* the node whose client it is */
#define NAME(n) ((n) == 2 -> 0 : (n))      /* node 2 is a clone of node 0 and has its name */
#define NONE 255

mtype = { unguarded, mapping, mapped };
mtype state = unguarded;                   /* the guard, and its version */
byte name, addr = NONE, version;

bool watches[CLIENTS];                     /* has the image open to write, as Ceph believes */
byte watching;                             /* how many do */
bool fenced[CLIENTS];                      /* on the monitors' blocklist */
bool refused[CLIENTS];                     /* by an OSD that has the map with the fence */
bool missed[CLIENTS];                      /* not seen for longer than the watch timeout, once */
bool machine;                              /* a virtual machine has the image open */

typedef Kernel {                           /* survives its plugin */
	byte dev = NONE;                   /* the mapping's client */
	bool used                          /* mounted here, or in a container's own mount namespace */
};
Kernel kernel[NODES];

typedef Plugin { byte ctrl = NONE; bool open, opening; byte clients };
Plugin plugin[NODES];                      /* the control client; whether it has the image open, or will in a moment */

mtype = { fine, killed, lost };            /* the plugin alone; with its device: a reboot, or the userspace mapper */
mtype fate[NODES] = fine;

byte lateVersion, lateAddr = NONE, lateName; /* a swap whose answer was lost: it may yet arrive */

byte faults = FAULTS, orders = ORDERS, strangers = STRANGERS;

#define WRITES(m) (kernel[m].dev != NONE && kernel[m].used && !refused[kernel[m].dev])
#define CURRENT(c) (kernel[HOST(c)].dev == (c) || plugin[HOST(c)].ctrl == (c))
#define LIVES(c) (kernel[HOST(c)].dev == (c) || plugin[HOST(c)].open && plugin[HOST(c)].ctrl == (c))
#define OPENING(c) (plugin[HOST(c)].opening && plugin[HOST(c)].ctrl == (c))

byte i;

/* An OSD that gets the newest map refuses who is fenced. */
inline tell() {
	for (i : 0 .. CLIENTS - 1) {
		if
		:: fenced[i] -> refused[i] = true
		:: else
		fi
	}
	i = 0
}

inline oneWriter() {
	assert(!(WRITES(0) && WRITES(1)));
#if NODES > 2
	assert(!(WRITES(0) && WRITES(2)) && !(WRITES(1) && WRITES(2)))
#endif
}

inline newClient(who) {
	assert(plugin[n].clients < PER);   /* else PER is too small for FAULTS and ROUNDS */
	who = n * PER + plugin[n].clients;
	plugin[n].clients++
}

inline watch(who) {
	if
	:: !watches[who] && !fenced[who] -> watches[who] = true; watching++
	:: else
	fi
}

inline unwatch(who) {
	if
	:: watches[who] -> watches[who] = false; watching--
	:: else
	fi
}

/* [Fence] ends the client's watch too. */
inline fence(who) {
	if
	:: CURRENT(who) -> fenced[who] = true; unwatch(who)
	:: else
	fi
}

/* A client that is no more. Ceph takes its watch for alive a while longer; but
   so does a process that stands still before it looks. */
inline ends(who) { unwatch(who); fenced[who] = false; refused[who] = false; missed[who] = false }

inline noDevice() {
	if
	:: kernel[n].dev != NONE -> ends(kernel[n].dev); kernel[n].dev = NONE; kernel[n].used = false
	:: else
	fi
}

inline noControl() {
	if
	:: plugin[n].ctrl != NONE -> ends(plugin[n].ctrl); plugin[n].ctrl = NONE; plugin[n].open = false; plugin[n].opening = false
	:: else
	fi
}

/* [SetState] and [Release]: one operation of the OSD, refused if the version is another. */
inline swap(old, check, newState, newAddr) {
	d_step {
		won = version == old || !check;
		if
		:: won ->
			state = newState; version++; mine = version; plugin[n].opening = newState == mapping;
			if
			:: newState == unguarded -> name = 0; addr = NONE
			:: else -> name = NAME(n); addr = newAddr
			fi
		:: else
		fi
	}
}

/* [forceUnmap] takes the mapping away whoever uses it, and fences its watch away. */
inline drop() { d_step { noDevice() } }

inline forget() { sawState = unguarded; sawName = 0; sawAddr = NONE; sawVersion = 0; won = false; ours = false }

/* What Ceph makes of a client that is dead, paused or cut off. */
active [CLIENTS] proctype Watch() {
end:	do
	:: d_step { watches[_pid] && LIVES(_pid) && faults > 0 -> unwatch(_pid); missed[_pid] = true; faults-- }
	:: d_step { missed[_pid] && !watches[_pid] && LIVES(_pid) && !fenced[_pid] -> watch(_pid) }
	:: d_step { refused[_pid] && !CHECK_LASTS -> fenced[_pid] = false; refused[_pid] = false; oneWriter() }
	od
}

proctype Node(byte n) {
	byte rounds, mine, prev = NONE;    /* the version of the guard that is ours, its client before us */
	mtype sawState = unguarded; byte sawName, sawAddr = NONE, sawVersion;
	bool won, ours, met;
start:
	{
		d_step { noControl(); newClient(plugin[n].ctrl) };

		/* [Reconcile], [reconcileVolume], [dropLost], [Lost] */
reconcile:
		atomic {
			forget(); sawState = state; sawAddr = addr;
			ours = kernel[n].dev == NONE || (sawState == mapped && sawAddr == kernel[n].dev || !CHECK_COVERS) && !fenced[kernel[n].dev];
			sawState = unguarded; sawAddr = NONE
		};
		atomic {
			if
			:: ours
			:: !ours -> drop()
			fi;
			ours = false;
			if
			:: rounds == ROUNDS && kernel[n].dev == NONE -> goto done
			:: rounds == ROUNDS && kernel[n].dev != NONE -> goto unstage
			:: rounds < ROUNDS
			fi
		};

acquire:	/* [tryAcquire], [Load], [isOwn] */
		atomic {
			sawState = state; sawName = name; sawAddr = addr; sawVersion = version; prev = NONE;
			ours = sawState != unguarded && sawName == NAME(n) && (HOST(sawAddr) == n || !CHECK_ADDRESS);
			if
			:: sawState == unguarded || ours -> goto adopt /* our own needs no look */
			:: sawState != unguarded && !ours
			fi
		};
		/* [waitForHolder], [isAlive], [isWatched] */
		if
		:: version != sawVersion -> goto acquire
		:: !CHECK_ALIVE || !watches[sawAddr] && !OPENING(sawAddr)
		:: atomic { !watches[sawAddr] && OPENING(sawAddr) && faults > 0 -> faults-- } /* it is slower than our two looks */
		fi;

adopt:		/* [Adopt], [Authorizes] */
		atomic {
			if
			:: kernel[n].dev == NONE
			:: kernel[n].dev != NONE && (sawState == mapped && sawAddr == kernel[n].dev || !CHECK_COVERS) -> goto use
			:: else -> drop()
			fi
		};
		/* [takeOver], [fence]: whoever may have written is fenced, and only then the guard is changed. */
		atomic {
			if
			:: (sawState == mapped || ours) && sawAddr != plugin[n].ctrl && CHECK_FENCE && CHECK_FENCE_FIRST ->
				assert(missed[sawAddr] || !LIVES(sawAddr));
				fence(sawAddr)
			:: else
			fi
		};
		atomic {
			swap(sawVersion, CHECK_TAKE, mapping, plugin[n].ctrl);
			if
			:: won
			:: !won -> goto acquire
			fi
		};
		if
		:: CHECK_FENCE_FIRST
		:: !CHECK_FENCE_FIRST && sawState == mapped -> d_step { fence(sawAddr) }
		:: !CHECK_FENCE_FIRST && sawState != mapped
		fi;
		d_step {
			if
			:: sawAddr != plugin[n].ctrl -> prev = sawAddr
			:: else
			fi;
			forget();
			plugin[n].open = true; plugin[n].opening = false; watch(plugin[n].ctrl)
		};
		/* [waitForWatchers]: the holder before us does not count; or there is no time left */
		if
		:: d_step {
			!CHECK_WATCHERS || !machine && watching - watches[plugin[n].ctrl] - (prev == NONE -> 0 : watches[prev]) == 0 ->
				met = machine; prev = NONE
		}
		:: version != mine -> goto undo
		:: atomic { machine && faults > 0 -> faults-- }; goto undo /* no time left */
		fi;

		/* [stage], [Map]: a client that connects has the newest map, and tells the OSD. */
		d_step {
			newClient(kernel[n].dev);
			watch(kernel[n].dev);
			if
			:: CHECK_MAP -> tell()
			:: else
			fi
		};
		if
		:: CHECK_MAPPED_FIRST
		:: !CHECK_MAPPED_FIRST -> d_step { kernel[n].used = true; oneWriter() }
		fi;
		if
		:: atomic {
			swap(mine, CHECK_MAPPED, mapped, kernel[n].dev);
			if
			:: won
			:: !won -> goto undo
			fi
		}
		:: d_step { faults > 0 && lateAddr == NONE -> /* LOST */
				faults--;
				lateVersion = mine; lateAddr = kernel[n].dev; lateName = NAME(n)
			};
			goto undo
		fi;

use:		/* [Mount] of the filesystem; the control client closes the image, a container starts */
		atomic {
			forget(); mine = 0;
			kernel[n].used = true;
			oneWriter();
			assert(!(met && machine));
			met = false;
			plugin[n].open = false; unwatch(plugin[n].ctrl);
			rounds++
		};
		if
		:: goto reconcile
		:: goto unstage
		fi;

unstage:		/* [Unmount], [unstage], [unmap]; a container that holds it makes that fail: mounted again */
		atomic {
			sawAddr = kernel[n].dev;
			if
			:: CHECK_UNMAP_FIRST -> drop()
			:: CHECK_BUSY -> goto reconcile
			:: !CHECK_BUSY || !CHECK_UNMAP_FIRST
			fi
		};
		atomic { sawState = state; ours = state != unguarded && (addr == sawAddr || !CHECK_CONTAINS); sawVersion = version; sawAddr = NONE };
		atomic {
			if
			:: ours -> swap(sawVersion, CHECK_RELEASE, unguarded, NONE)
			:: !ours
			:: faults > 0 -> faults-- /* LOST */
			fi;
			forget()
		};
		if
		:: CHECK_UNMAP_FIRST
		:: !CHECK_UNMAP_FIRST -> drop()
		fi;
		goto reconcile;

undo:		/* [undoStage], [Release] */
		atomic { prev = NONE; met = false; noDevice() };
		if
		:: swap(mine, CHECK_UNDO, unguarded, NONE)
		:: atomic { faults > 0 -> faults-- } /* LOST */
		fi;
		d_step { forget(); mine = 0; plugin[n].open = false; unwatch(plugin[n].ctrl) };
		goto acquire;
done:		skip
	} unless {
		atomic {
			fate[n] != fine ->
			noControl();
			forget(); mine = 0; prev = NONE; met = false;
			if
			:: fate[n] != killed -> noDevice()
			:: else
			fi;
			fate[n] = fine
		};
		goto start
	}
}

active proctype World() {
	byte n, fencedAddr = NONE, sawVersion;
end:	do
	:: atomic {
		faults > 0 -> faults--;
		if
		:: n = 0
		:: n = 1
#if NODES > 2
		:: n = 2
#endif
		fi;
		if
		:: fate[n] = killed
		:: fate[n] = lost
		fi;
		n = 0
	}
	:: d_step { strangers > 0 -> strangers--; machine = true }
	:: d_step { machine -> machine = false }
	:: d_step { /* a late swap arrives, or never will */
		lateAddr != NONE ->
		if
		:: version == lateVersion || !CHECK_MAPPED -> state = mapped; version++; addr = lateAddr; name = lateName
		:: else
		fi;
		lateAddr = NONE; lateVersion = 0; lateName = 0
	}
	:: d_step { lateAddr != NONE -> lateAddr = NONE; lateVersion = 0; lateName = 0 }

	/* [FenceNode]: an operator believes that the holder is dead. [fenceAll] */
	:: atomic { orders > 0 && state != unguarded -> orders--; fencedAddr = addr; sawVersion = version };
		if
		:: CHECK_ORDER_FENCE -> d_step { fence(fencedAddr); missed[fencedAddr] = CURRENT(fencedAddr) }
		:: else
		fi;
		d_step {
			if
			:: version == sawVersion || !CHECK_ORDER -> state = unguarded; version++; name = 0; addr = NONE
			:: else
			fi;
			fencedAddr = NONE; sawVersion = 0
		}
	od
}

init {
	atomic {
		run Node(0);
		run Node(1);
#if NODES > 2
		run Node(2)
#endif
	}
}
