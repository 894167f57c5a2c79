// SPDX-License-Identifier: GPL-2.0-or-later
// Programs that go on after their caller has ended, one of each name at most.
//
// The one that runs holds a lock on a file; only while it is held does the number beside it name a process of ours.
using System;
using System.Diagnostics;
using System.IO;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Threading;

namespace Memshare
{
    static class Background
    {
        const int StartMs = 60000;
        const int BeginMs = 5000;
        const int PollMs = 20;
        const uint DetachedProcess = 0x8;

        static FileStream held;

        /// Where these programs keep a file. MEMSHARE_RUN names another folder, to try them outside of a guest.
        public static string PathOf(string name)
        {
            string folder = Environment.GetEnvironmentVariable("MEMSHARE_RUN");
            if (string.IsNullOrEmpty(folder))
                folder = Path.Combine(
                    Environment.GetFolderPath(Environment.SpecialFolder.CommonApplicationData), "memshare");
            Directory.CreateDirectory(folder);
            return Path.Combine(folder, name);
        }

        public static bool IsWindows
        {
            get { return Environment.OSVersion.Platform == PlatformID.Win32NT; }
        }

        public static bool Runs(string name)
        {
            FileStream file = TryTake(name);
            if (file != null)
                file.Dispose();
            return file == null;
        }

        /// Called by the one that runs, first of all.
        public static void Begin(string name)
        {
            // Whoever asks whether it runs has the lock for a moment.
            held = TryTake(name);
            for (Stopwatch waited = Stopwatch.StartNew(); held == null; held = TryTake(name))
            {
                if (waited.ElapsedMilliseconds > BeginMs)
                    throw new Failure(name + " runs already");
                Thread.Sleep(1);
            }
            // Whole or not there: who reads half a number ends another process.
            File.WriteAllText(PathOf(name + ".new"), Process.GetCurrentProcess().Id.ToString());
            File.Delete(PathOf(name + ".pid"));
            File.Move(PathOf(name + ".new"), PathOf(name + ".pid"));
        }

        public static void End(string name)
        {
            for (Stopwatch waited = Stopwatch.StartNew(); Runs(name); Thread.Sleep(PollMs))
            {
                if (waited.ElapsedMilliseconds > StartMs)
                    throw new Failure(name + " does not end");
                try
                {
                    using (Process process = Process.GetProcessById(int.Parse(File.ReadAllText(PathOf(name + ".pid")))))
                        process.Kill();
                }
                catch (Exception)
                {
                    continue; // it has not written its number yet, or is gone
                }
            }
        }

        /// Starts a program of this folder, and waits until it holds its lock and has written its number.
        public static void Start(string name, string program, params string[] arguments)
        {
            End(name);
            File.Delete(PathOf(name + ".pid")); // of one that has ended: the number may be another process's by now
            string folder = Path.GetDirectoryName(Assembly.GetExecutingAssembly().Location);
            string line = "\"" + Path.Combine(folder, program + ".exe") + "\" " + string.Join(" ", arguments);
            if (IsWindows)
                Detach(line);
            else
                Process.Start(new ProcessStartInfo("mono", line)
                {
                    UseShellExecute = false,
                    RedirectStandardOutput = true,
                    RedirectStandardError = true,
                });
            for (Stopwatch waited = Stopwatch.StartNew(); !File.Exists(PathOf(name + ".pid")); Thread.Sleep(PollMs))
                if (waited.ElapsedMilliseconds > StartMs)
                    throw new Failure(name + " did not start");
        }

        static FileStream TryTake(string name)
        {
            FileStream file = new FileStream(
                PathOf(name + ".lock"), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.ReadWrite | FileShare.Delete);
            try
            {
                file.Lock(0, 1);
                return file;
            }
            catch (IOException)
            {
                file.Dispose();
                return null;
            }
        }

        // The guest agent waits until nobody has its pipes any more; Process.Start would hand them on.
        static void Detach(string line)
        {
            StartupInfo startup = new StartupInfo();
            startup.size = Marshal.SizeOf(startup);
            ProcessInformation made;
            if (!CreateProcess(null, line, IntPtr.Zero, IntPtr.Zero, false, DetachedProcess, IntPtr.Zero, null,
                               ref startup, out made))
                throw new Failure(line + ": Windows error " + Marshal.GetLastWin32Error());
            CloseHandle(made.process);
            CloseHandle(made.thread);
        }

        [StructLayout(LayoutKind.Sequential, CharSet = CharSet.Unicode)]
        struct StartupInfo
        {
            public int size;
            public string reserved, desktop, title;
            public int x, y, width, height, columns, rows, fill, flags;
            public short showWindow, reservedBytes;
            public IntPtr reservedPointer, input, output, error;
        }

        [StructLayout(LayoutKind.Sequential)]
        struct ProcessInformation
        {
            public IntPtr process, thread;
            public int processId, threadId;
        }

        [DllImport("kernel32.dll", SetLastError = true, CharSet = CharSet.Unicode)]
        static extern bool CreateProcess(string application, string line, IntPtr processSecurity, IntPtr threadSecurity,
                                         bool inherit, uint flags, IntPtr environment, string folder,
                                         ref StartupInfo startup, out ProcessInformation made);

        [DllImport("kernel32.dll")]
        static extern bool CloseHandle(IntPtr handle);
    }
}
