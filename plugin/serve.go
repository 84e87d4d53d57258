package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/docker/go-plugins-helpers/volume"
	"github.com/sirupsen/logrus"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Docker waits two minutes for Create and Mount and one for everything else (moby,
// daemon/volume/drivers/proxy.go), and who asks is to have the reason before. It may
// wait for less: 30 s after docker plugin enable.
var (
	long  = limits{work: 100 * time.Second, answer: 115 * time.Second}
	short = limits{work: 45 * time.Second, answer: 56 * time.Second}
)

// limits are the time for a request's work, and that by which it is answered, whether
// what has to be undone is undone by then or not.
type limits struct{ work, answer time.Duration }

// maxBody is far above any request of Docker's.
const maxBody = 1 << 20

var (
	errRetry    = errors.New("empty body: docker's retry of a lost request")
	errProtocol = fmt.Errorf("%w request: not the JSON of docker's volume plugin protocol", backend.ErrInvalid)
	errNoEnd    = errors.New("it has not come to its end in time; what it still does is undone, or told by the log")
	errHungUp   = errors.New("who asked has hung up")
	errKept     = errors.New("nobody waits for it any more: kept for a minute, in case the same id asks again")
)

// tellable decides what may be told of an error. Of what dockerd asks to learn whether
// there is a volume, any error at all is "no such volume" to it: it forgets the volume,
// and a swarm makes it anew elsewhere (moby, volume/service/store.go). So there only
// Ceph's word for that is passed on; for everything else we hang up, which dockerd takes
// for a plugin that does not answer.
func tellable(op string, err error) bool {
	switch op {
	case "get", "list", "path":
		return errors.Is(err, backend.ErrNoVolume) || errors.Is(err, errProtocol)
	}
	return !errors.Is(err, errRetry)
}

// serve decodes a request, runs fn within the limits, answers, and logs. If keep is given,
// fn goes on when who asked has hung up, and if fn succeeds when nobody hears of it any
// more, keep is called.
func serve[Request, Response any](s *Server, op string, limit limits, fn func(context.Context, Request) (Response, error),
	keep func(context.Context, Request),
) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		var request Request
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var log logrus.FieldLogger = s.Log.WithField("op", op)
		if err == nil {
			log, err = decode(log, body, &request)
		}
		var response Response
		if err == nil {
			do := func(ctx context.Context) (Response, error) { return fn(ctx, request) }
			var unheard func(context.Context)
			if keep != nil {
				unheard = func(ctx context.Context) { keep(ctx, request) }
			}
			response, err = work(log, op, limit, r, do, unheard)
		}
		logRequest(log.WithField("duration", time.Since(start).Round(100*time.Microsecond).String()), op, err)
		switch {
		case err == nil:
			sdk.EncodeResponse(w, response, false)
		case !tellable(op, err):
			panic(http.ErrAbortHandler)
		default:
			sdk.EncodeResponse(w, volume.NewErrorResponse(err.Error()), true)
		}
	}
}

// work runs fn, and waits for it as long as Docker waits for the answer.
func work[Response any](log logrus.FieldLogger, op string, limit limits, r *http.Request,
	fn func(context.Context) (Response, error), keep func(context.Context),
) (Response, error) {
	type result struct {
		response Response
		err      error
	}
	ctx := r.Context()
	if keep != nil {
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, limit.work)
	ended := make(chan result, 1)
	go func() {
		defer cancel()
		var is result
		is.err = backend.Survive(func() (err error) {
			is.response, err = fn(ctx)
			return err
		})
		ended <- is
	}()
	unheard := func(why error) error {
		if keep == nil {
			return why
		}
		keep(ctx)
		return errKept
	}
	tooLate := time.NewTimer(limit.answer)
	defer tooLate.Stop()
	select {
	case is := <-ended:
		if is.err == nil && r.Context().Err() != nil {
			is.err = unheard(errHungUp)
		}
		return is.response, is.err
	case <-tooLate.C:
		go func() {
			is := <-ended
			if is.err == nil {
				is.err = unheard(errNoEnd)
			}
			logRequest(log.WithField("late", true), op, is.err)
		}()
		var none Response
		return none, errNoEnd
	}
}

// decode reads the body. An empty one is Docker's retry after a lost
// connection: it has read its own buffer to the end the first time (moby,
// pkg/plugins/client.go). It says nothing of what was meant, so hang up.
func decode(log logrus.FieldLogger, body []byte, request any) (logrus.FieldLogger, error) {
	if _, none := request.(*empty); none {
		return log, nil
	}
	if len(body) == 0 {
		return log, errRetry
	}
	if err := json.Unmarshal(body, request); err != nil {
		return log, fmt.Errorf("%w: %w", errProtocol, err)
	}
	var who struct{ Name, Volume, Snapshot, ID string }
	if json.Unmarshal(body, &who) == nil {
		log = log.WithField("volume", shorten(who.Name+who.Volume))
		if who.Snapshot != "" {
			log = log.WithField("snapshot", shorten(who.Snapshot))
		}
		if who.ID != "" {
			log = log.WithField("id", shorten(who.ID))
		}
	}
	return log, nil
}

// shorten keeps a hostile name or a 64-digit id from filling the log.
func shorten(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// logRequest writes the one line of a request. What Docker asks all the time
// and what changes nothing is for debugging, as long as it works.
func logRequest(log logrus.FieldLogger, op string, err error) {
	looks := false
	switch op {
	case "activate", "capabilities", "get", "list", "path", "list guards", "list snapshots":
		looks = true
	}
	switch {
	case err == nil && looks:
		log.Debug("ok")
	case err == nil:
		log.Info("ok")
	case op == "get" && errors.Is(err, backend.ErrNotFound):
		log.Debug(err)
	default:
		if fault := new(backend.PanicError); errors.As(err, &fault) {
			log = log.WithField("stack", string(fault.Stack))
		}
		log.WithError(err).Error("failed")
	}
}
