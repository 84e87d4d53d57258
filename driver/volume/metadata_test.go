package volume

import (
	"encoding/json"
	"maps"
	"reflect"
	"testing"

	"github.com/docker-volume-rbd/docker-volume-rbd/driver/backend"
)

// Each key that is known has a field, comes back as it was, and one that is not known does too.
func TestMetadataComesBackAsItWas(t *testing.T) {
	raw := map[string]string{"of a newer version": "kept"}
	var m Metadata
	for key := range m.texts() {
		raw[key] = "text of " + key
	}
	for key := range m.flags() {
		raw[key] = "true"
	}
	m = ParseMetadata(raw)
	for i := range reflect.TypeFor[Metadata]().NumField() {
		if field := reflect.ValueOf(m).Field(i); field.IsZero() {
			t.Errorf("no key is that of %s", reflect.TypeFor[Metadata]().Field(i).Name)
		}
	}
	if got := m.Encode(); !maps.Equal(got, raw) {
		t.Errorf("got %v, want %v", got, raw)
	}
	record, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var read Metadata
	if err := json.Unmarshal(record, &read); err != nil || !read.Equal(m) {
		t.Errorf("read back: %+v, %v", read, err)
	}
}

func TestMetadataOfAHand(t *testing.T) {
	m := ParseMetadata(map[string]string{KeyReadOnly: "perhaps", KeyProtected: "no", KeyUID: "root"})
	if !m.ReadOnly || m.Protected {
		t.Errorf("read-only %v, protected %v", m.ReadOnly, m.Protected)
	}
	if _, err := m.Owner(); err == nil {
		t.Error("accepted a user's name")
	}
	var none Metadata
	if err := json.Unmarshal([]byte("null"), &none); err != nil || len(none.Encode()) > 0 {
		t.Errorf("of none: %+v, %v", none, err)
	}
}

func TestMetadataOfACopy(t *testing.T) {
	parent := ParseMetadata(map[string]string{KeyFSType: "xfs", KeyMountOptions: "noatime", KeyProtected: "true", KeySealed: "1", KeyComplete: "1"})
	m := parent.Inherited().With(map[string]string{KeyMountOptions: "discard", KeyReadOnly: "true"})
	want := map[string]string{KeyFSType: "xfs", KeyMountOptions: "discard", KeyReadOnly: "true"}
	if got := m.Encode(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	delete(want, KeyFSType)
	if got := m.Kept().Encode(); !maps.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
	if m.Sealed = "1"; !m.IsSealed(backend.Image{ID: "1"}) || m.IsSealed(backend.Image{ID: "2"}) {
		t.Error("a copy is sealed with its original")
	}
}
